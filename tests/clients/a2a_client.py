"""An A2A client on the official SDK.

    a2a_client.py URL --binding JSONRPC|HTTP+JSON [--stream NAME N | --text TEXT]

It reads the card at URL, dials what the card says, and prints what came back. The SDK's error of a call is an
observation, not a failure of this program: {"error": …}.
"""

import argparse
import asyncio
import uuid

import httpx
from a2a.client import A2ACardResolver, ClientConfig, create_client
from a2a.helpers import get_message_text, get_stream_response_text
from a2a.types import Message, Part, Role, SendMessageRequest, TaskState

from witness import heard, report


def request(text):
    message = Message(role=Role.ROLE_USER, message_id=str(uuid.uuid4()), parts=[Part(text=text)])
    return SendMessageRequest(message=message)


async def call(client, stream, text):
    events, states, answer = [], [], ""
    async for event in client.send_message(request(text)):
        events.append(event.WhichOneof("payload"))
        status = event.status_update.status if event.HasField("status_update") else None
        if status:
            states.append(TaskState.Name(status.state))
            words = get_message_text(status.message).split() if status.HasField("message") else []
            if stream and words[:1] == ["step"]:
                heard(stream, int(words[1]))
        if event.HasField("task"):
            states.append(TaskState.Name(event.task.status.state))
        if text_of := get_stream_response_text(event):
            answer = text_of
    return {"events": events, "states": states, "answer": answer}


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--binding", default="JSONRPC")
    parser.add_argument("--text", default="hello")
    parser.add_argument("--stream", nargs=2, metavar=("NAME", "N"))
    args = parser.parse_args()
    config = ClientConfig(streaming=bool(args.stream), supported_protocol_bindings=[args.binding])
    text = f"count {args.stream[0]} {args.stream[1]}" if args.stream else args.text
    async with httpx.AsyncClient() as http:
        card = await A2ACardResolver(http, args.url).get_agent_card()
    client = await create_client(card, client_config=config)
    dialled = [i.url for i in card.supported_interfaces if i.protocol_binding == args.binding]
    try:
        observed = await call(client, args.stream and args.stream[0], text)
        report(dialled=dialled, **observed)
    except Exception as e:  # noqa: BLE001 whatever the SDK raises is what its user sees
        report(dialled=dialled, error=f"{type(e).__name__}: {e}")
    finally:
        await client.close()


asyncio.run(main())
