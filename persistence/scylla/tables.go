package scylla

import (
	"github.com/scylladb/gocqlx/v2/qb"
)

// statement is a CQL statement; its values are bound in the order of names.
type statement struct {
	cql   string
	names []string
}

type builder interface {
	ToCql() (stmt string, names []string)
}

func prepare(b builder) *statement {
	cql, names := b.ToCql()
	return &statement{cql, names}
}

// put is a plain write with a time to live (0: none) and a timestamp.
func put(table string, columns ...string) *statement {
	return prepare(qb.Insert(table).Columns(columns...).TTLNamed("ttl").TimestampNamed("ts"))
}

// remove deletes what where says. The timestamp is bound first.
func remove(table string, where ...qb.Cmp) *statement {
	return prepare(qb.Delete(table).TimestampNamed("ts").Where(where...))
}

// The writes.
var (
	putSession      = put("session", "key", "row")
	delSession      = remove("session", qb.Eq("key"))
	putSubscription = put("subscription", "session", "filter", "row")
	delSubscription = remove("subscription", qb.Eq("session"), qb.Eq("filter"))
	delSubscribed   = remove("subscription", qb.Eq("session"))
	putWindow       = put("window", "session", "slot", "key", "row")
	delSettled      = remove("window", qb.Eq("session"), qb.Eq("slot"), qb.LtOrEq("key"))
	delWindow       = remove("window", qb.Eq("session"))
	putInbox        = put("inbox", "session", "bucket", "id", "row")
	delInboxRow     = remove("inbox", qb.Eq("session"), qb.Eq("bucket"), qb.Eq("id"))
	delInbox        = remove("inbox", qb.Eq("session"), qb.Eq("bucket"))
	putPayload      = put("payload", "id", "part", "row")
	delPayload      = remove("payload", qb.Eq("id"))
	putRetained     = put("retained", "topic", "row")
	delRetained     = remove("retained", qb.Eq("topic"))
	putIndex        = put("retained_index", "shard", "topic", "state")
	delIndex        = remove("retained_index", qb.Eq("shard"), qb.Eq("topic"))
	putWill         = put("will", "shard", "session", "row")
	delWill         = remove("will", qb.Eq("shard"), qb.Eq("session"))
	putExpiry       = put("expiry", "bucket", "shard", "expires", "key")
	delExpiry       = remove("expiry", qb.Eq("bucket"), qb.Eq("shard"), qb.Eq("expires"), qb.Eq("key"))
	delExpiries     = remove("expiry", qb.Eq("bucket"), qb.Eq("shard"))
	putExpiryBucket = put("expiry_bucket", "part", "bucket")
	delExpiryBucket = remove("expiry_bucket", qb.Eq("part"), qb.Eq("bucket"))
	putIntent       = put("intent", "node", "bucket", "id", "row")
	delIntent       = remove("intent", qb.Eq("node"), qb.Eq("bucket"), qb.Eq("id"))
	delIntents      = remove("intent", qb.Eq("node"), qb.Eq("bucket"))
	putClock        = put("node", "node", "clock")
	putBuckets      = put("node", "node", "low", "high")
)

// The reads.
var (
	getSessionTime   = prepare(qb.Select("session").Columns("row", "WRITETIME(row)").Where(qb.Eq("key")))
	getSubscriptions = prepare(qb.Select("subscription").Columns("filter", "row", "WRITETIME(row)").Where(qb.Eq("session")))
	getWindow        = prepare(qb.Select("window").Columns("slot", "key", "row", "WRITETIME(row)").Where(qb.Eq("session"), qb.Lt("slot")))
	getWholeWindow   = prepare(qb.Select("window").Columns("slot", "key", "row", "WRITETIME(row)").Where(qb.Eq("session")))
	getSettled       = prepare(qb.Select("window").Columns("key").Where(qb.Eq("session"), qb.Eq("slot"), qb.Gt("key")))
	getSwept         = prepare(qb.Select("window").Columns("row").Where(qb.Eq("session"), qb.Eq("slot"), qb.Eq("key")))
	getInbox         = prepare(qb.Select("inbox").Columns("id", "row").Where(qb.Eq("session"), qb.Eq("bucket"), qb.GtNamed("id", "after"), qb.LtOrEqNamed("id", "upto")))
	getDirectory     = prepare(qb.Select("inbox").Columns("id").Where(qb.Eq("session"), qb.Eq("bucket"), qb.Lt("id")))
	getPayload       = prepare(qb.Select("payload").Columns("row").Where(qb.Eq("id"), qb.EqLit("part", "0")))
	getTargets       = prepare(qb.Select("payload").Columns("row").Where(qb.Eq("id"), qb.GtLit("part", "0")))
	scanPayloads     = prepare(qb.Select("payload").Distinct("id").Where(qb.Token("id").GtOrEqValueNamed("from"), qb.Token("id").LtOrEqValueNamed("to")))
	getEntry         = prepare(qb.Select("inbox").Columns("id").Where(qb.Eq("session"), qb.Eq("bucket"), qb.Eq("id")))
	getRetained      = prepare(qb.Select("retained").Columns("row").Where(qb.Eq("topic")))
	getManyRetained  = prepare(qb.Select("retained").Columns("topic", "row").Where(qb.In("topic")))
	getIndex         = prepare(qb.Select("retained_index").Columns("topic", "state").Where(qb.Eq("shard"), qb.GtOrEq("topic")))
	getWills         = prepare(qb.Select("will").Columns("session", "row").Where(qb.Eq("shard")))
	getWill          = prepare(qb.Select("will").Columns("row").Where(qb.Eq("shard"), qb.Eq("session")))
	getExpiry        = prepare(qb.Select("expiry").Columns("expires", "key").Where(qb.Eq("bucket"), qb.Eq("shard"), qb.LtOrEq("expires")))
	getExpiryBuckets = prepare(qb.Select("expiry_bucket").Columns("bucket").Where(qb.Eq("part"), qb.LtOrEq("bucket")))
	getIntents       = prepare(qb.Select("intent").Columns("id", "row").Where(qb.Eq("node"), qb.Eq("bucket")))
	getIntentIDs     = prepare(qb.Select("intent").Columns("id").Where(qb.Eq("node"), qb.Eq("bucket")))
	getNode          = prepare(qb.Select("node").Columns("clock", "low", "high").Where(qb.Eq("node")))
	scanSessions     = prepare(qb.Select("session").Columns("row").Where(qb.Token("key").GtOrEqValueNamed("from"), qb.Token("key").LtOrEqValueNamed("to")))
	scanSubscribed   = prepare(qb.Select("subscription").Columns("session", "filter", "row").Where(qb.Token("session").GtOrEqValueNamed("from"), qb.Token("session").LtOrEqValueNamed("to")))
)

// Slots of a window.
const (
	slotMark    int8 = iota // key 0: the mark
	slotHeld                // key: packet id
	slotSent                // key: packet id
	slotSettled             // key: ID of an entry that was released
	slotSwept               // key 0: the coarse bucket below which the inbox was removed
)

// part names a partition: writes to the same one may go as one batch. The zero
// part is none in particular.
type part struct {
	table byte
	a, b  int64
}

const (
	partSubscription = 1 + iota
	partWindow
	partInbox
	partIndex
	partWill
	partExpiry
	partIntent
	partPayload
)

// write is one row to write.
type write struct {
	stmt *statement
	part part
	args []any
	size int
}
