"""Campaigns: from a list of datasets to calibrated products, on one machine or on AWS Batch."""
