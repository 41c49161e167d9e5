#!/usr/bin/env python3
"""One stream with many requests on it, whose answers come as they are ready and are matched by id.

    infer_stream.py --requests=100

One request of them is wrong on purpose: it gets an error, and the stream goes on.
"""

import queue
import sys

from connection import connect, hidden_states, parse_arguments, random_rows

WRONG = "no such layer"


def main():
    arguments = parse_arguments(__doc__, requests=100)
    with connect(arguments) as client:
        rows = random_rows(client, arguments.model, 2000)
        expected = client.infer(arguments.model, [hidden_states(rows)]).as_numpy("output")
        answers = queue.Queue()
        # The callback runs on a thread of the client, so it only passes answers on.
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        sizes = {}
        for i in range(arguments.requests):
            sizes[str(i)] = len(rows) if i % 10 == 0 else 1 + i % 7  # some take much longer than others
            client.async_stream_infer(arguments.model, [hidden_states(rows[:sizes[str(i)]])], request_id=str(i))
        client.async_stream_infer(arguments.model + ".none", [hidden_states(rows[:1])], request_id=WRONG)

        order, wrong, worst = [], [], 0.0
        for _ in range(arguments.requests + 1):
            result, error = answers.get(timeout=60)
            if error is not None:
                wrong.append(error.message())
                continue
            identity = result.get_response().id
            order.append(int(identity))
            difference = abs(result.as_numpy("output") - expected[:sizes[identity]]).max() / abs(expected).max()
            worst = max(worst, difference)
        client.stop_stream()

    overtaken = sum(later < earlier for earlier, later in zip(order, order[1:]))
    print(f"{len(order)} answers, {overtaken} of them before one that was asked for earlier; {worst:.1e} off at most")
    print("the wrong request got:", wrong[0])
    return 0 if sorted(order) == list(range(arguments.requests)) and len(wrong) == 1 and worst < 2e-2 else 1


if __name__ == "__main__":
    sys.exit(main())
