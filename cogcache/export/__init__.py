"""Hands captions on: as rows, as subtitles, and in the layouts that video trainers read.

A module a group of formats; ``formats`` lists them and ``run`` makes an export of any.
"""
