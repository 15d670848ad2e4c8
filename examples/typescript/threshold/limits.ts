// The settings of the function, with their types and defaults.
export interface Limits {
  readonly field: string;
  readonly max: number;
  readonly hysteresis: number;
}

const DEFAULTS = { field: "temperature", max: 80, hysteresis: 0 } as const satisfies Limits;

export function limitsOf(settings: Partial<Limits>): Limits {
  return { ...DEFAULTS, ...settings };
}
