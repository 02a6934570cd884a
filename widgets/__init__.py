"""Views: one Python class and one plain ESM file each, drawing the data that engine/ hands them."""
