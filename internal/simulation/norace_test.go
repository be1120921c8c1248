//go:build !race

package simulation

const defaultSchedules = 2000

const defaultFleets = 300

const raceDetector = false
