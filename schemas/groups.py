"""The consumer groups, one of each stage; a fleet's prefix goes before these names as before its topics'."""

INFERENCE_GROUP = "inference"
DELIVERY_GROUP = "delivery"
GROUPS = (INFERENCE_GROUP, DELIVERY_GROUP)
