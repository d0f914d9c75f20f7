"""The gray release of a model: its records, and the decisions that follow from them."""
