"""Points and the maps of a first stage in, refined boxes out: PV-RCNN++ (spec 4.6)."""
