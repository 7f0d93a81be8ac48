"""Read a store on this machine with Spark, from the files that the tables' logs name: no extra jars are needed.

pip install pyspark   # and Java 17 or later
python examples/read_with_spark.py demo/store
"""

import sys

from deltalake import DeltaTable
from pyspark.sql import SparkSession

store = sys.argv[1]
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
for table in ("tracks", "frames"):
    files = DeltaTable(f"{store}/{table}").file_uris()
    # The base path makes the folders' names, recipe=… and resolution=…, columns.
    spark.read.option("basePath", f"{store}/{table}").parquet(*files).createOrReplaceTempView(table)

spark.sql("""
    SELECT track_id, resolution, start_frame, num_frames, size(embeddings[0]) AS embed_dim,
        embeddings[0][0] AS first_value
    FROM frames JOIN tracks USING (recipe, track_id, content_hash)
    ORDER BY track_id, resolution, start_frame
""").show(20, truncate=False)
spark.stop()
