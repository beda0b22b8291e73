"""The paper's tables and figures, made again in the simulator beside the printed numbers; `parts` lists them."""
