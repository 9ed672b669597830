// What the page asks the server for.

export async function ask(address, options) {
  const answer = await fetch(address, options);
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.error ?? `The server answered ${answer.status}.`);
}

// A file as an ArrayBuffer; `progress` is told the share that is there.
export async function download(address, signal, progress) {
  const answer = await ask(address, { signal });
  const data = new Uint8Array(Number(answer.headers.get("Content-Length")));
  const reader = answer.body.getReader();
  let filled = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    data.set(part.value, filled);
    filled += part.value.length;
    progress(filled / data.length);
  }
  if (filled < data.length) throw new Error("The server broke off: is it still running?");
  return data.buffer;
}
