"""From tables in Spark to a trained model: Parquet out, then train.py in Spark's executors.

spark-submit spark.py /shared 8
"""

from __future__ import annotations

import sys
from pathlib import Path

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

TRAIN = Path(__file__).with_name("train.py")


def main(folder: str, processes: int, *options: str) -> None:
    """Writes a table for each modality into a folder that all machines see, and trains."""
    spark = SparkSession.builder.appName("mvkit").getOrCreate()
    patients = spark.range(1000).withColumnRenamed("id", "number")  # your table
    clinic = patients.selectExpr("concat('p', number) id", "number % 60 + 20.0 age")
    labs = patients.selectExpr("concat('p', number) id", "cos(number) crp", "sin(number) hb")
    tables = {"clinic": clinic, "labs": labs}
    for name, table in tables.items():
        table.write.mode("overwrite").parquet(f"{folder}/{name}.parquet")
    named = [f"--table={name}={folder}/{name}.parquet" for name in tables]
    # use_gpu=True where executors have GPUs
    distributor = TorchDistributor(num_processes=processes, local_mode=False, use_gpu=False)
    distributor.run(str(TRAIN), f"--folder={folder}/run", *named, *options)
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
