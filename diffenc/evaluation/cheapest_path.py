"""The cheapest path with a given number of edges, by dynamic programming."""

import numpy as np
from jaxtyping import Float, Int

_ROWS = 64  # at a time: so many that numpy's calls cost little, so few that a block stays in the cache


def cheapest_path(cost: Float[np.ndarray, "nodes nodes"], num_edges: int) -> Int[np.ndarray, " stops"]:
    """The nodes 0 = n_0 < n_1 < ... < n_T = nodes - 1 that make the sum of cost[n_k, n_{k-1}] least.

    Takes num_edges * nodes^2 / 2 additions and comparisons at most.

    Args:
      cost: of the edge from the column's node to the row's; only what lies below the diagonal is read.
      num_edges: T.

    Raises:
      ValueError: there is no such path.
    """
    nodes = len(cost)
    if not 1 <= num_edges < nodes:
        raise ValueError(f"no path of {num_edges} edges over {nodes} nodes")
    # Edges run from a larger node to a smaller one; all others are forbidden by an infinite cost.
    below = np.where(np.tri(nodes, k=-1, dtype=bool), cost, np.inf)
    best = np.full(nodes, np.inf)
    best[0] = 0.0
    came_from = np.zeros((num_edges + 1, nodes), np.int32)
    # Bellman: best[n] after k rounds is the least cost of a path with exactly k edges from node 0 to n.
    for edge in range(1, num_edges + 1):
        best, came_from[edge] = _one_more_edge(below, best, edge, nodes - (num_edges - edge))
    # Backwards along the choices, from the last node in as many edges as were made.
    stops = [nodes - 1]
    for edge in range(num_edges, 0, -1):
        stops.append(int(came_from[edge, stops[-1]]))
    return np.array(stops[::-1])


def _one_more_edge(
    below: Float[np.ndarray, "nodes nodes"], best: Float[np.ndarray, " nodes"], first: int, end: int
) -> tuple[Float[np.ndarray, " nodes"], Int[np.ndarray, " nodes"]]:
    """Least costs of reaching the nodes from `first` up to `end`, and from where; infinite for the others.

    Before `first` no path has enough nodes behind it, from `end` on none has enough before it.
    """
    reached, source = np.full(len(best), np.inf), np.zeros(len(best), np.int32)
    for start in range(first, end, _ROWS):
        rows = slice(start, min(start + _ROWS, end))
        # Columns before first - 1 cannot be reached in `first` - 1
        # edges, those from rows.stop on lie above the diagonal.
        total = below[rows, first - 1 : rows.stop] + best[first - 1 : rows.stop]
        chosen = total.argmin(axis=1)
        reached[rows] = total[np.arange(len(chosen)), chosen]
        source[rows] = chosen + first - 1
    return reached, source
