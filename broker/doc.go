// Package broker is Herald: it builds a node from its configuration, runs it and
// stops it.
//
// The life of a publish:
//
//	socket → listen.poller          reads once for many packets
//	       → wire.Split             finds the frames; control packets go to mochi
//	       → engine/intake.go       PUBLISH frames become runs, one per topic
//	       → engine/match.go        topic.Cache names the subscribers; what must
//	                                be stored is put into a batch
//	       → engine/commit.go       the store's group commit: one fsync for many
//	       → engine/deliver.go      session.Session gives packet ids and appends
//	                                frames to the subscribers' connections
//	       → engine/acknowledge.go  the publisher's acknowledgements, in order
//	       → listen.Worker.Flush    one write per connection
//
// A publish with nothing to store goes the same way without the commit, on the
// goroutine that read it.
package broker
