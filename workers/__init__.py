"""What happens to a job: the stage, the engines, enrichment, inference and delivery."""
