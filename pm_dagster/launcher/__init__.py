"""Starting the deployed Databricks job and following its run."""
