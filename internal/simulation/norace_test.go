//go:build !race

package simulation

const defaultSchedules = 2000

const defaultFleets = 200

const raceDetector = false
