"""The cheapest path with a given number of edges, by dynamic programming."""

import numpy as np
from jaxtyping import Float, Int

_ROWS = 64  # at a time: so many that numpy's calls cost little, so few that a block stays in the cache


def cheapest_path(cost: Float[np.ndarray, "nodes nodes"], num_edges: int) -> Int[np.ndarray, " stops"]:
    """Returns the nodes 0 = n_0 < n_1 < ... < n_T = nodes - 1 that minimise the sum of cost[n_k, n_{k-1}].

    Takes num_edges * nodes^2 / 2 additions and comparisons at most.

    Args:
      cost: of the edge from the column's node to the row's; only entries below the diagonal are read.
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
    # Backtracking along the stored predecessors, from the last node.
    stops = [nodes - 1]
    for edge in range(num_edges, 0, -1):
        stops.append(int(came_from[edge, stops[-1]]))
    return np.array(stops[::-1])


def _one_more_edge(
    below: Float[np.ndarray, "nodes nodes"], best: Float[np.ndarray, " nodes"], first: int, end: int
) -> tuple[Float[np.ndarray, " nodes"], Int[np.ndarray, " nodes"]]:
    """Returns the least costs of reaching the nodes from `first` up to `end`, and the predecessors; infinite for the others.

    Nodes before `first` have too few nodes behind them for the edges made so far, those from `end` on too few for the others.
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
