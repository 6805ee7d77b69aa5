"""Texts, pictures and conversations: what models are calibrated on and measured on."""
