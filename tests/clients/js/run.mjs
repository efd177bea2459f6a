// One scene in Node.js. It must end by itself: nobody calls process.exit.

import { createInterface } from "node:readline";
import { scenes } from "./scenes.mjs";

const [name, env] = [process.argv[2], JSON.parse(process.argv[3])];
const lines = createInterface({ input: process.stdin });

/** Tell the test what it is to do, and wait until it is done. */
env.say = (text) => {
  console.log(text);
  return new Promise((resolve) => lines.once("line", resolve));
};

await scenes[name](env);
lines.close();
process.stdin.destroy();
console.log("passed");
