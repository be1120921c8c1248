package broker

import (
	"go.uber.org/zap"

	"github.com/herald-mqtt/herald/broker/config"
	"github.com/herald-mqtt/herald/persistence"
)

// On makes a node that is alone on a store.
func On(cfg config.Config, store persistence.Store, log *zap.Logger) (*Broker, error) {
	return on(cfg, store, nil, log)
}
