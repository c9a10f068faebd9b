"""An A2A agent on the official SDK: JSON-RPC at /rpc, HTTP+JSON at /rest, its card where cards belong.

"count NAME N" answers with a task of N status updates, each in lockstep; anything else is echoed as a message.
"""

import uvicorn
from a2a.helpers import new_task_from_user_message, new_text_message, new_text_part
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, TaskState
from starlette.applications import Starlette

from witness import port, seen, until_heard


class Echo(AgentExecutor):
    async def execute(self, context, event_queue):
        text = context.get_user_input()
        seen("message", text=text)
        words = text.split()
        if words[:1] != ["count"]:
            await event_queue.enqueue_event(new_text_message(f"echo: {text}"))
            return
        stream, steps = words[1], int(words[2])
        task = new_task_from_user_message(context.message)
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        for step in range(1, steps + 1):
            note = updater.new_agent_message([new_text_part(f"step {step}")])
            await updater.update_status(TaskState.TASK_STATE_WORKING, message=note)
            await until_heard(stream, step)
        await updater.add_artifact([new_text_part(f"counted to {steps}")])
        await updater.complete()

    async def cancel(self, context, event_queue):
        raise NotImplementedError("nothing here runs long enough")


def card(at):
    interface = lambda path, binding: AgentInterface(
        url=f"http://127.0.0.1:{at}{path}", protocol_binding=binding, protocol_version="1.0"
    )
    return AgentCard(
        name="Echo",
        description="Echoes and counts",
        version="1.0.0",
        supported_interfaces=[interface("/rpc", "JSONRPC"), interface("/rest", "HTTP+JSON")],
        capabilities=AgentCapabilities(streaming=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="echo", name="Echo", description="Says it back", tags=["test"])],
    )


def main():
    at = port()
    agent_card = card(at)
    handler = DefaultRequestHandler(Echo(), InMemoryTaskStore(), agent_card)
    routes = [
        *create_agent_card_routes(agent_card),
        *create_jsonrpc_routes(handler, "/rpc"),
        *create_rest_routes(handler, path_prefix="/rest"),
    ]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=at, log_level="warning")


if __name__ == "__main__":
    main()
