"""The consumer groups, one for each stage. The groups' names get the fleet's topic prefix."""

INFERENCE_GROUP = "inference"
DELIVERY_GROUP = "delivery"
EXPANSION_GROUP = "expansion"
SHADOW_GROUP = "shadow"
GROUPS = (INFERENCE_GROUP, DELIVERY_GROUP, EXPANSION_GROUP, SHADOW_GROUP)
