"""Recipes and profiles."""
