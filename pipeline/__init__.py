"""From a music catalog to a store of MusicFM features: one room a folder, each standing on those before it.

The base (``config errors schema storage location local_files logs``), then ``catalog``, ``decode``, ``embed``,
``store``, ``report``, ``run``, ``index``, ``search``, ``service``.
"""
