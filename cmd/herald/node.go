package main

import (
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald/broker"
	"github.com/herald-mqtt/herald/broker/config"
)

func openNode(c config.Config, log *zap.Logger) (node, error) {
	broker.Version = version
	return broker.New(c, log)
}
