"""CKAAD: coarse-knowledge-aware adversarial learning, and Recon, its baseline without anomalies."""
