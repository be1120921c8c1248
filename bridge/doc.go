// Package bridge carries frames between the nodes of a cluster over Redis
// Streams, and keeps every node's routes known to the others. It knows nothing
// of what it carries.
//
// # A frame's way
//
// [Bridge.AppendAsync] puts a frame into the link of the node it is for. The
// link's goroutine packs what waits into entries, numbers the frames, and
// appends the entries to that node's stream in one round trip; what arrives
// meanwhile makes the next batch. The receiving node reads its stream, hands the
// frames on in the order of their numbers, and says with its next entry in the
// other direction, or after 25 ms in one of its own, how far it has come. Only
// then does the link forget a frame. Redis trims what was read.
//
// # Nothing rests on Redis
//
// It may lose what it has acknowledged, be emptied, or go back to an older
// state. The receiver takes the next number and no other: what it has is a
// duplicate, and what comes too early shows that something is missing, which it
// asks for. So an append that timed out is simply sent again, and nothing is
// delivered twice; the link also asks when an acknowledgement is late. A frame
// that a link took arrives once and in order as long as both nodes live and the
// owner keeps them in [Bridge.SetPeers].
//
// A sequence belongs to a sender's incarnation, a receiver's incarnation and a
// link between them: a node that starts anew begins with empty hands, and what
// was meant for its predecessor is not for it.
//
// # Redis away
//
// [Bridge.Available] turns false with the first connection that fails. Frames
// that somebody waits for and that never left are given back with
// [ErrUnavailable]; those that may have reached Redis are reported with
// [ErrHeld] and stay, because only the same number sent again is recognized. The
// buffers are bounded, and a full one refuses with [ErrOverflow].
//
// A Redis that answers again is looked at before anything is sent: its marker,
// the identity of its process and the end of this node's stream tell whether
// something may be gone. If so, everything not acknowledged by its receiver is
// sent again, everything announced and not applied is announced again, and
// [Handler.Lost] tells the owner.
//
// # Routes
//
// [Bridge.Announce] numbers a change of this node's routes and adds it to the
// one routes stream, which all nodes read. Each node tells each other how far it
// has applied the other's announcements; [Bridge.Settled] waits for all. Who
// misses some asks for them, and gets them again or, if they are no longer kept,
// finds a snapshot of all the routes in Redis. A node that joins is served the
// same way: it has missed everything. [Bridge.Ready] waits until it has caught up
// with every node, each of which waits for it from then on. The stream is
// compacted by age: whoever would have needed the rest asks.
package bridge
