"""From a music catalog to a store of MusicFM features: one step a file or folder, in the order of the data's way.

catalog → plan → decode → embed → pool → write → commit → read. ``dataflow`` assembles the steps; ``index``,
``search`` and ``service`` answer from what they leave.
"""
