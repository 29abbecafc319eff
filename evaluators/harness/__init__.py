"""Tasks of lm-evaluation-harness, answered by this platform's engines: ``lm_eval:TASK``.

The library is optional. `tasks` finds a task without importing it, `loading` builds its documents,
`model` answers its requests by an engine, `job` turns what it makes of them into predictions.
"""
