"""Studies of averaging on the local workloads: `python -m lab.studies NAME`.

Every module here is a command. A study declares its grid of runs, the observer
of each run, its tables and its figures; `parts` does the rest. `submissions`
has those that exist for comparison only.

| module | question |
|---|---|
| `claims` | which claims of the papers hold here? |
| `steps` | how many steps does each average need to the target? |
| `primal` | are averages that train better than averages that watch? |
| `robustness` | what does a wrong learning rate or a wrong T cost? |
| `sequences` | is y, z or a longer average better than x? |
| `running_statistics` | which statistics of BatchNorm suit x? |
| `refreshing` | what does refreshing BatchNorm's statistics cost? |
| `horizon` | which horizon reaches the target first? |
| `bema` | does a correction of an average's lag pay? |
| `auto` | is the choice among averages a good one? |
| `unseen` | does it hold on seeds that were not looked at? |
| `repeated` | does it survive data that repeat? |
| `quickstart` | how much does averaging change one run? |
| `published` | how far do AlgoPerf's published points come? |
| `gains` | when does averaging pay? |
| `frameworks` | do PyTorch and JAX reach the target alike? |
| `calibrate` | which target does a workload's baseline set? |
| `tune` | which hyperparameters suit a method on a workload? |
| `choices` | which average has each evaluation of a trial seen? |
"""

import pkgutil

# No commands, but what the commands share and compare with.
_OTHERS = ('parts', 'submissions')


def names() -> list[str]:
  """Names of all commands, found in this folder."""
  modules = pkgutil.iter_modules(__path__)
  return sorted(
    m.name
    for m in modules
    if m.name not in _OTHERS and not m.name.startswith('_')
  )
