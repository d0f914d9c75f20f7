"""The consumer groups, one for each stage. Their names get the fleet's topic prefix."""

INFERENCE_GROUP = "inference"
DELIVERY_GROUP = "delivery"
EXPANSION_GROUP = "expansion"
GROUPS = (INFERENCE_GROUP, DELIVERY_GROUP, EXPANSION_GROUP)
