"""PV-RCNN++: a second stage that refines boxes from the points around them (spec 4.6)."""
