"""Learners and the navigators made of them; one file or folder a method."""
