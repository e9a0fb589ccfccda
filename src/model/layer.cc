// First source of the layer arrives with its module.
