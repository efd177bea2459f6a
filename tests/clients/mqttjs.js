"use strict";

// mqtt.js on a leash: one JSON command a line in, one JSON event a line out. mqttjs.py writes the commands.

const readline = require("node:readline");
const mqtt = require("mqtt");

const clients = new Map();

function tell(event) {
  process.stdout.write(JSON.stringify(event) + "\n");
}

const commands = {
  connect({ client, url, options }) {
    // Coming back is a command too.
    const made = mqtt.connect(url, { reconnectPeriod: 0, ...options });
    clients.set(client, made);
    made.on("connect", (packet) => tell({ client, event: "connect", present: packet.sessionPresent }));
    made.on("close", () => tell({ client, event: "close" }));
    made.on("error", (error) => tell({ client, event: "error", code: error.code, text: error.message }));
    made.on("message", (topic, payload, packet) =>
      tell({ client, event: "message", topic, payload: payload.toString(), qos: packet.qos, retain: packet.retain }),
    );
  },

  subscribe({ client, id, filters, qos }) {
    clients.get(client).subscribe(filters, { qos }, (_error, _asked, packet) => tell({ id, granted: packet.granted }));
  },

  publish({ client, id, topic, payload, qos, retain }) {
    clients.get(client).publish(topic, payload, { qos, retain }, (error, packet) => {
      const properties = (packet && packet.properties) || {};
      tell({ id, reason: error ? error.code : 0, text: properties.reasonString || "" });
    });
  },

  cut({ client }) {
    clients.get(client).stream.destroy();
  },

  back({ client }) {
    clients.get(client).reconnect();
  },

  end({ client, id }) {
    clients.get(client).end(false, {}, () => tell({ id }));
  },
};

const lines = readline.createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const command = JSON.parse(line);
  commands[command.do](command);
});
lines.on("close", () => process.exit());
