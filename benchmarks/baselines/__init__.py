"""The networks of other papers beside the same networks of other libraries."""
