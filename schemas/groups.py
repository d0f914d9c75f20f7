"""The consumer groups, one for each stage. A fleet's prefix precedes their names, as its topics'."""

INFERENCE_GROUP = "inference"
DELIVERY_GROUP = "delivery"
GROUPS = (INFERENCE_GROUP, DELIVERY_GROUP)
