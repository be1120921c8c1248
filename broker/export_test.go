package broker

// On is New on a store of the test's.
var On = on
