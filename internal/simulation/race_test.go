//go:build race

package simulation

// defaultSchedules is how many schedules of each kind run. Under the race detector
// they take some ten times as long, and find no more.
const defaultSchedules = 150

const defaultFleets = 20

const raceDetector = true
