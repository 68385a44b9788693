package stdio

import "io"

// Streams are what the client of an exec or attach session gives to it. What is
// nil the client does not want.
type Streams struct {
	In  io.Reader // its end is the end of the input
	Out io.Writer
	Err io.Writer // nil with a terminal, which has one output
	// Resize has the sizes of the client's terminal. It is nil without one and
	// may be closed before the session ends.
	Resize <-chan Size
}

// Size is that of a terminal, in characters.
type Size struct {
	Width, Height uint16
}
