// Package scenario holds what clients see of a cluster: each test is a small
// story whose clients are on different nodes. The clients are MQTT 5 and do
// nothing by themselves.
//
// -scenario.brokers=1 tells the same stories to one node alone, which shows that
// a test is about the cluster and not wrong itself.
package scenario
