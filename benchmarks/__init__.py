"""How fast is a plugin? One command measures hybridload beside everything that does the same: ``python -m benchmarks``.

Every contender is a process of its own that stays for the whole run and is told by the conductor what to do next
(`workers.worker`). What is compared is measured in turns, many short ones, in a different order each time: a machine
that becomes slow for a second does so for all. What is printed are ratios within a turn, with their spread; absolute
times are for orientation.

- `programs` builds and installs what is compared, `contenders` lists it, `conductor` lets it run, `report` makes the
  table and the JSON, `chart` the picture.
- `workers` are the programs that measure; those for other libraries run in environments without hybridload.
"""
