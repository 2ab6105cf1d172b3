// Package loopback keeps ports of 127.0.0.1 for servers that stop and start
// again. A free port that a server found once may be anybody's while it is down:
// the next who asks for a free one gets it now and then.
package loopback

// Port is a port that is kept.
type Port struct {
	Number int // 0 where ports cannot be kept: any free one
	close  func() error
}

// Close gives the port up. Calling it again does nothing.
func (p *Port) Close() error {
	if p.close == nil {
		return nil
	}
	f := p.close
	p.close = nil
	return f()
}
