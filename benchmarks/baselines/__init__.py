"""The networks of other papers next to the same networks of other libraries."""
