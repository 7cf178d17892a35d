/* The three things that the task needs of an operating system, here by FreeRTOS. For another, write these three anew. */
#ifndef RTOS_H
#define RTOS_H

#include "FreeRTOS.h"
#include "task.h"

/* The head of a task's function. */
#define RTOS_TASK(name) void name(void *argument)

/* Lets other tasks that can run do so. */
#define RTOS_YIELD() taskYIELD()

/* Sleeps until there may be a sample: the sensor's interrupt calls vTaskNotifyGiveFromISR, its task xTaskNotifyGive. */
#define RTOS_WAIT_FOR_SAMPLE() ((void)ulTaskNotifyTake(pdTRUE, portMAX_DELAY))

#endif
