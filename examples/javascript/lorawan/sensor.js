// Decoder of a thermometer, in the form that The Things Stack and ChirpStack share.
function decodeUplink(input) {
  var bytes = input.bytes;
  if (input.fPort !== 2) {
    return { errors: ["port " + input.fPort + " is not one of this device"] };
  }
  if (bytes.length < 5) {
    return { errors: ["a payload of " + bytes.length + " bytes is too short"] };
  }
  var temperature = (bytes[0] << 8) | bytes[1];
  if (temperature > 0x7fff) temperature -= 0x10000;
  return {
    data: {
      temperature: temperature / 100,
      humidity: ((bytes[2] << 8) | bytes[3]) / 10,
      battery: bytes[4] / 50 + 1,
      time: input.recvTime.toISOString()
    },
    warnings: bytes[4] < 50 ? ["the battery is low"] : []
  };
}
