"""The usual durable script, for comparison: paho-mqtt and SQLite, one synced commit per message, then the acknowledgement.

durable.py PORT DATABASE FILTER: writes each message that it hears; a payload that begins with "!" is also an alert, published on
script/alerts with the rest of the payload as its key.
"""

import json
import sqlite3
import sys

import paho.mqtt.client as mqtt

port, path, filters = int(sys.argv[1]), sys.argv[2], sys.argv[3]
database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
database.execute("PRAGMA journal_mode = WAL")
database.execute("PRAGMA synchronous = FULL")
database.execute("CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY, topic TEXT, payload BLOB)")


def on_connect(client, userdata, flags, reason, properties):
    client.subscribe(filters, qos=1)


def on_message(client, userdata, message):
    payload = message.payload
    database.execute("BEGIN")
    database.execute("INSERT INTO outbox (topic, payload) VALUES (?, ?)", (message.topic, payload))
    database.execute("COMMIT")
    if payload.startswith(b"!"):
        client.publish("script/alerts", json.dumps({"key": payload[1:].decode()}), qos=1)
    client.ack(message.mid, message.qos)


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="script", protocol=mqtt.MQTTv5, manual_ack=True)
client.on_connect = on_connect
client.on_message = on_message
client.connect("127.0.0.1", port)
client.loop_forever()
