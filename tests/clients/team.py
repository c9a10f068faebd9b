"""A team of three agents as a LangGraph, whose nodes know URLs and nothing else: team.py PLAN RESEARCH WRITE

Each node posts what is there so far to its agent's /echo. A node that is refused leaves the graph by its own edge, with
what the refusal said.
"""

import operator
import sys
from typing import Annotated, TypedDict

import httpx
from langgraph.graph import END, START, StateGraph

from witness import report


class State(TypedDict):
    notes: Annotated[list, operator.add]
    refused: dict


def asks(name, url):
    def node(state):
        answer = httpx.post(url, content=f"{name} after {len(state['notes'])}", timeout=30)
        if answer.status_code != 200:
            problem = answer.json()
            return {"refused": {"by": name, "status": answer.status_code, "rule": problem.get("rule")}}
        return {"notes": [answer.json()["body"]]}

    return node


def team(urls):
    graph, names = StateGraph(State), ["plan", "research", "write"]
    for name, url in zip(names, urls):
        graph.add_node(name, asks(name, url))
    graph.add_edge(START, names[0])
    for name, after in zip(names, [*names[1:], END]):
        graph.add_conditional_edges(name, lambda state, after=after: END if state["refused"] else after)
    return graph.compile()


state = team(sys.argv[1:4]).invoke({"notes": [], "refused": {}})
report(notes=state["notes"], refused=state["refused"])
