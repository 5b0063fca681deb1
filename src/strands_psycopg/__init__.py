"""Strands Agents sessions in PostgreSQL."""
